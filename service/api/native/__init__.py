"""The native endpoints: generate, project, latent-interpolate, latent-arithmetic, score."""
