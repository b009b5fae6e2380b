"""What the checks share: recorder, inputs, devices, precision, remedies."""
