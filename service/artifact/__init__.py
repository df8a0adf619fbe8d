"""What an exported model is: its card and its golden rows. The contract between export and service."""
