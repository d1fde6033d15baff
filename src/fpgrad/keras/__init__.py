"""What Keras users import: FPGA with fit, evaluate, predict and summary, thin over flow."""
