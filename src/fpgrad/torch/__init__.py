"""What PyTorch users will import: compile_step, thin over flow."""
