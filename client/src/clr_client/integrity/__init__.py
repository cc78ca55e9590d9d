"""Whether what is published is still what was published, and mending it where it is not."""
