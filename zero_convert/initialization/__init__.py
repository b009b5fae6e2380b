"""What a scheme is, and how its formulas reach the tensors."""
