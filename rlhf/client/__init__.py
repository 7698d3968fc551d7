"""Clients of the services, for other systems to import. No torch."""
