"""Sends requests at their times and stamps what arrives: sockets, TLS, HTTP framing."""
