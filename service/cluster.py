"""The old name of `service.ray_serve`, for one release."""

from service.ray_serve import app
from service.ray_serve import proxy_callback as proxy

__all__ = ["app", "proxy"]
