"""What the doors to Bambu Lab are made of: bambu_client, bambu_report, bambu_files, bambu_cloud, bambu_discovery."""
