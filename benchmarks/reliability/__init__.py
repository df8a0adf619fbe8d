"""What the service withstands: hostile input, attacks, storms of clients, failures and restarts."""
