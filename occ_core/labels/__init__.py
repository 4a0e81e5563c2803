"""3D pseudo-labels: teachers' maps lifted, fused over time, and honest about what nobody saw."""
