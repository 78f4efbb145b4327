"""Fast implementations of the operation that ``ramnet_np.core`` states, one folder per programming model."""
