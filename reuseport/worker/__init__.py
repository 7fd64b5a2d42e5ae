"""The gevent process that serves requests."""
