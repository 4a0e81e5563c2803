"""ROS 2 bags written without ROS: messages, motion and the writer. Reading them: `occ_core.sources`."""
