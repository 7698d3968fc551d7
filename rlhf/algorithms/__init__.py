"""The mathematics of training, in pure torch: no models, no input or output, no other room of the house."""
