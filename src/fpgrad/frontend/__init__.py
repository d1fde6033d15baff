"""Front ends: lower a framework's model to the training graph and list what cannot be lowered."""
