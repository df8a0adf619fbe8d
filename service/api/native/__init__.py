"""The endpoints in the form of this service: images and scores."""
