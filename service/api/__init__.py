"""The HTTP surface: parse, negotiate, answer."""
