"""Training data: data sets, latents and corruptions."""
