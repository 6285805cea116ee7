"""Files of data sets on other machines, read by their addresses: https://, gs://, s3://."""
