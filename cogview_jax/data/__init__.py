"""Records, images, transforms, sources, the loader, and token stores."""
