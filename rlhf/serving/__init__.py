"""What every server needs: its row in the directory, configuration, process, calls, rights, metrics. No torch."""
