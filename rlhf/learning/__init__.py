"""What happens to the weights: objectives, updates, optimizers, ranks. No service is called from here."""
