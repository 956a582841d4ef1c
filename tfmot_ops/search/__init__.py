"""The search for the recipe that meets goals: ladder -> goals -> front -> page. No TensorFlow."""
