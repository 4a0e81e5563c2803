"""Networks: parts that models share, and one folder a model."""
