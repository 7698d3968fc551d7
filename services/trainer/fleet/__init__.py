"""The replicas of the policy service as a run sees them: found, brought current, asked, and done without."""
