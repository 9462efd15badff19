"""What server and trainer pass each other."""
