"""What is computed from features: FID, IS, KID, CLIPScore, CMMD, precision and recall."""
