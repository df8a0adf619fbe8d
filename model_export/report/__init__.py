"""Pages about models, with their figures."""
