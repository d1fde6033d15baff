"""Number formats: their descriptions and their exact integer arithmetic, without any framework or HDL."""
