"""The embedded drawings of emoji with their names: pictures, batches, augmentation."""
