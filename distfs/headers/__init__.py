"""What headers say, each read by one reader that follows its RFC. Pure: no I/O, and linear in what came."""
