"""The reference service: log-probabilities under the frozen reference policy."""
