"""Services as processes of this machine: started, watched, restarted, and found again by other commands."""
