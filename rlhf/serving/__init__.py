"""What every service shares: configuration, errors, the server bootstrap, channels, metrics, logs, codec. No torch."""
