"""Model cards, figures and pages."""
