"""What a channel is worth: rules and scores that turn a posterior (or a trained network) into a plan."""
