"""What a user describes: frozen, validated types and the files they come from."""
