"""What every service shares: configuration, errors, the server bootstrap, channels, metrics, logs, and the wire's codec. No torch."""
