"""Pictures and recordings of what the robot saw and what was made of it."""
