"""The run as others see it: TrainerService, its control and what signals do."""
