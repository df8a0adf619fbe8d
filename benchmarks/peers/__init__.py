"""The servers beside which this service is measured, written as their documentation recommends."""
