"""3D pseudo-labels: teachers' maps are lifted and fused over time; what nobody saw stays unobserved."""
