// The official provider for browsers: reads everything at once, polls, and tells of changes.
import { OpenFeature, ProviderEvents } from "@openfeature/web-sdk";
import { OFREPWebProvider } from "@openfeature/ofrep-web-provider";

const [baseUrl, token, key] = process.argv.slice(2);
await OpenFeature.setContext({ targetingKey: key });
const client = OpenFeature.getClient();
await OpenFeature.setProviderAndWait(
  new OFREPWebProvider({ baseUrl, pollInterval: 100, headers: [["Authorization", `Bearer ${token}`]] }),
);
client.addHandler(ProviderEvents.ConfigurationChanged, async (event) => {
  const digest = client.getObjectDetails("ticket-triage", {}).flagMetadata.digest;
  console.log(JSON.stringify({ changed: event.flagsChanged ?? [], digest }));
  await OpenFeature.close();
  process.exit(0);
});
const first = client.getStringDetails("ticket-triage.model", "none");
console.log(JSON.stringify({ value: first.value, digest: first.flagMetadata.digest, variant: first.variant }));
