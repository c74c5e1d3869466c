"""Secured clusters: TLS, users and roles."""
