"""The mathematics of training as pure functions of tensors. Imports torch and the standard library alone."""
