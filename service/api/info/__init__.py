"""Health, metrics, models, the OpenAPI document, its viewer and the web page."""
