"""Read the data of the user: folders, tables, TensorFlow Datasets, and their splits."""
