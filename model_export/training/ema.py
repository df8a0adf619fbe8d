"""Exponential moving average of the weights; what is sampled, taught from and exported."""
