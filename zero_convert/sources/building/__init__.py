"""How a model is built without drawing numbers or needing memory."""
