"""The dashboards, a module for each; START at ../build_dashboards.py."""
