"""Running a trained model: preprocessing, look-up table, backends, predictor, export."""
