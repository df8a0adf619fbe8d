"""Which rows run next: admission, the fair queue, and the workers that form batches."""
